"""What this machine and the hub can give a study, looked at before anything is paid for."""
