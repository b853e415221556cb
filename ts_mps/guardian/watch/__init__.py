"""The watch: look at what runs (``look``), decide purely (``judge``), carry it out (``act``), show it (``show``)."""
