"""The demo: publishes events, runs the real workers on them, and checks what became of every single one."""
