"""What the admin and the commands both ask for."""
