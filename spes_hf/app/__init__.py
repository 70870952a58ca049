"""A page for people who do not write Python: give a recording, get its explanation. Needs the extra ``app``."""
