"""Scripts for developers of sp_fast."""
