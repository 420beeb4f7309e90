//! What the compiler says of pipelines that cannot work. It is a package of its own so that the cases
//! see of the library what its users see, and so that little is compiled for them.
