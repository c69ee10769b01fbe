"""What Ray Train costs, and what it saves: measured on a small student."""
