"""Everything that runs on the machine of the user. Never imported by `lib`."""
