"""What every wing uses: cached results, whole files, errors, progress."""
