"""Settings: read from a file and the environment, checked, and put into one model. Errors name the setting."""
