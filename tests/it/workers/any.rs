//! `--any`: one host of the target gets the task.
