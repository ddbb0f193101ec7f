"""peftlab: one bench for parameter-efficient fine-tuning."""
