"""One JupyterHub on one host for a room of thirty: what ``jupyterhub_config.py`` is made of."""
