"""A web page for people who do not write Python: upload a recording, get its explanation. Needs the extra ``app``."""
