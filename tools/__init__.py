"""Scripts for those who develop sp_fast."""
