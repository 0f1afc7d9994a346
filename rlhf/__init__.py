"""Human feedback and the fine-tuning that it feeds."""
