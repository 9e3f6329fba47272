"""The samples of a training, streamed by Ray Data in the order that is a pure function of the seed."""
