//! The compiler's messages for invalid pipelines. A separate package, so that the cases see the library
//! as its users do, and so that few crates are compiled for them.
