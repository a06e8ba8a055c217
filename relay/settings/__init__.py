"""Settings: from a file and the environment to one checked model, with errors that name the setting."""
