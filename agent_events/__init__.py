"""SmartFlow's services, one Django app each. A service can be moved out by moving its folder."""
