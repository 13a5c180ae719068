//! Nothing: what is built are the dependencies.
