"""What will happen before it does: time and memory by layout, from counted work and hardware."""
