"""What diffusions, scores and flows are made of: paths from data to noise, what a network predicts of them, and samplers."""
