"""What a compile did, as report.json and report.html."""
