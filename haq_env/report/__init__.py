"""What people look at: rendered episodes, plots, tables in the terminal, and their JSON."""
