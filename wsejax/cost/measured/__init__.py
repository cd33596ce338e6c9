"""What was measured and published, group by group: each file exports `GROUPS`, models with few constants, each with a meaning."""
