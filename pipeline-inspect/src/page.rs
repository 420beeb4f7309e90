//! The page: one document with inline style and script, and its content security policy. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("page/index.html");
const LOOKUP: &str = include_str!("page/lookup.html");
const LOOKUP_SCRIPT: &str = include_str!("page/lookup.js");
/// The link to the page that looks up sockets.
const LINK: &str = r#" Sockets of an id: <a id="lookup" href="lookup">lookup</a>"#;
const STYLE: &str = include_str!("page/style.css");
/// In the order of their dependencies.
const SCRIPTS: [&str; 4] = [
    include_str!("page/channel.js"),
    include_str!("page/format.js"),
    include_str!("page/drawing.js"),
    include_str!("page/app.js"),
];

/// The page as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) html: Bytes,
    /// Allows only the page's own style, script and server.
    pub(crate) policy: HeaderValue,
}

impl Page {
    /// The page of the view, with a link to that which looks up sockets, if there is one.
    pub(crate) fn new(links_lookup: bool) -> Self {
        let script = format!("'use strict'\n{}", SCRIPTS.concat());
        Self::of(&DOCUMENT.replace("<!--lookup-->", if links_lookup { LINK } else { "" }), &script)
    }

    /// The page that looks up sockets.
    pub(crate) fn lookup() -> Self {
        Self::of(LOOKUP, &format!("'use strict'\n{LOOKUP_SCRIPT}"))
    }

    fn of(document: &str, script: &str) -> Self {
        let html = document.replace("/*style*/", STYLE).replace("/*script*/", script);
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
            hash(script),
            hash(STYLE),
        );
        let policy = HeaderValue::from_str(&policy).expect("base64 is ASCII");
        Self { html: html.into(), policy }
    }
}

/// The hash of a text as a source in the policy.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_contains_its_style_and_script_and_loads_nothing_else() {
        for (page, script) in [(Page::new(true), SCRIPTS[3]), (Page::lookup(), LOOKUP_SCRIPT)] {
            let html = std::str::from_utf8(&page.html).unwrap();
            assert!(html.contains(&format!("<style>{STYLE}</style>")));
            assert!(html.contains(script) && !html.contains("/*script*/"));
            for outside in ["src=", "http://", "https://", "innerHTML", "@import", " style="] {
                let named = html.replace("http://www.w3.org/2000/svg", "");
                assert!(!named.contains(outside), "{outside}");
            }
        }
    }

    #[test]
    fn the_policy_allows_only_the_page_script() {
        // The hash of the empty text, as computed by other tools.
        assert_eq!(hash(""), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
        let policy = Page::new(false).policy;
        let policy = policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"));
    }
}
