//! The scripts, styles and fonts, which are inside the program.

/// A file that the pages load. Its name has a hash of its content, so that browsers can keep it for ever.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// The name, which is the last part of `/assets/{name}`.
    pub name: &'static str,
    /// The value of the header `content-type`.
    pub content_type: &'static str,
    /// The content.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// All assets.
#[must_use]
pub const fn assets() -> &'static [Asset] {
    ASSETS
}

/// The address of an asset, by its name without the hash, such as `shop.js`.
pub(crate) fn url(name: &str) -> String {
    let Some((stem, extension)) = name.rsplit_once('.') else { return String::new() };
    let is_it = |asset: &&Asset| {
        let parts = asset.name.rsplit_once('.');
        let parts = parts.and_then(|(rest, end)| Some((rest.rsplit_once('-')?.0, end)));
        parts == Some((stem, extension))
    };
    let asset = ASSETS.iter().find(is_it);
    asset.map_or_else(String::new, |asset| format!("/assets/{}", asset.name))
}
