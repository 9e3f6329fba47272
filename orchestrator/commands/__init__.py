"""The commands of `raydiology`, by what they are about; they import what they need when they run."""
