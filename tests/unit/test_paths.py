import os

import pytest

from ts_mps.errors import PreflightError, UsageError
from ts_mps.paths import SUN_PATH_BYTES, Home, default_root, resolve_home


def test_the_folder_is_chosen_in_the_documented_order():
    assert str(default_root({"TS_MPS_HOME": "/a", "XDG_RUNTIME_DIR": "/b"})) == "/a"
    assert str(default_root({"XDG_RUNTIME_DIR": "/b"})) == "/b/ts-mps"
    assert str(default_root({})) == f"/tmp/ts-mps-{os.getuid()}"


def test_it_is_made_private(short_dir):
    home = resolve_home(str(short_dir / "a" / "b"), {})
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_looking_makes_nothing(short_dir):
    home = resolve_home(str(short_dir / "a"), {}, create=False)
    assert not home.root.exists()
    assert home.instances() == []


def test_the_longest_socket_decides_about_the_length(short_dir):
    uuid = "GPU-39f82936-603a-ee4f-ceb1-14ac504a07be"
    room = SUN_PATH_BYTES - len(f"/gpus/{uuid}/pipe/control_privileged")
    fits = str(short_dir / ("x" * 200))[:room]
    home = resolve_home(fits, {})
    assert len(str(home.gpu(uuid).pipe / "control_privileged")) == SUN_PATH_BYTES
    with pytest.raises(PreflightError, match=r"too long.*at least 1 bytes shorter"):
        resolve_home(fits + "x", {})


def test_a_symlink_is_refused(short_dir):
    (short_dir / "real").mkdir(mode=0o700)
    (short_dir / "link").symlink_to(short_dir / "real")
    with pytest.raises(PreflightError, match="symbolic link"):
        resolve_home(str(short_dir / "link"), {})


def test_a_folder_open_to_others_is_refused_with_the_command(short_dir):
    (short_dir / "open").mkdir()
    (short_dir / "open").chmod(0o755)
    with pytest.raises(PreflightError, match=r"mode 0755.*chmod 700"):
        resolve_home(str(short_dir / "open"), {})


def test_a_file_is_refused(short_dir):
    (short_dir / "file").touch()
    with pytest.raises(PreflightError, match=r"cannot be made|not a folder"):
        resolve_home(str(short_dir / "file"), {})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(short_dir):
    (short_dir / "theirs").mkdir(mode=0o700)
    os.chown(short_dir / "theirs", 65534, 65534)
    with pytest.raises(PreflightError, match="belongs to user 65534"):
        resolve_home(str(short_dir / "theirs"), {})


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 33, "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name, short_dir):
    with pytest.raises(UsageError, match="not an instance name"):
        Home(short_dir).instance(name)
