//! The pages of the shop: what each page shows, as types, and the templates that draw it.
//!
//! The templates are in `templates/`, the scripts and styles in `web/`. Text of products and shoppers is escaped by the
//! templates, so nothing here builds HTML by hand.

mod assets;
mod photo;
mod templates;
mod views;

pub use self::{
    assets::{Asset, SCRIPTS_BUILT, assets},
    photo::photograph,
    templates::{
        admin, app, card, checkout, checkout_complete, drops, entry, shop, size_selector,
        unavailable,
    },
    views::{AdminView, CheckoutLine, CheckoutView, ItemView, PageHead, ProductView, Variant},
};
