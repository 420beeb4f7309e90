//! The products of a new database. Pure.

use fastrand::Rng;

use crate::domain::catalogue::{Catalogue, Item, Product};

/// The sizes of each product, and the counts between which those of its items are drawn. All levels occur.
const SIZES: [(&str, std::ops::RangeInclusive<i64>); 6] = [
    ("6", 150..=499),
    ("7", 1..=149),
    ("8", 500..=900),
    ("9", 0..=0),
    ("10", 30..=149),
    ("11", 500..=1200),
];

struct Model {
    sku: &'static str,
    brand: &'static str,
    name: &'static str,
    color: &'static str,
    price_usd: i64,
    main_image_url: &'static str,
}

const MODELS: [Model; 2] = [
    Model {
        sku: "FW-T23-EMB",
        brand: "Fernweh",
        name: "Tempo 23",
        color: "ember",
        price_usd: 160,
        main_image_url: "/photos/runner-ember.svg",
    },
    Model {
        sku: "FW-CRT-GLC",
        brand: "Fernweh",
        name: "Courtside",
        color: "glacier",
        price_usd: 190,
        main_image_url: "/photos/high-glacier.svg",
    },
];

/// What a new database has: two products, both still to be released, in six sizes each. The same number draws the same
/// counts.
#[must_use]
pub fn seed(number: u64) -> Catalogue {
    let mut random = Rng::with_seed(number);
    let (mut products, mut items) = (Vec::new(), Vec::new());
    for (id, model) in (1..).zip(&MODELS) {
        products.push(Product {
            id,
            position: id,
            sku: model.sku.to_owned(),
            brand: model.brand.to_owned(),
            name: model.name.to_owned(),
            color: model.color.to_owned(),
            price_usd: model.price_usd,
            main_image_url: model.main_image_url.to_owned(),
            released: false,
            release_at: None,
            rev: 1,
        });
        for (size, counts) in &SIZES {
            items.push(Item {
                id: items.len() as i64 + 1,
                product_id: id,
                sku: format!("{}-{size}", model.sku),
                size: (*size).to_owned(),
                available_count: random.i64(counts.clone()),
                rev: 1,
            });
        }
    }
    Catalogue::new(products, items)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_has_two_products_with_all_levels_and_is_the_same_again() {
        let one = seed(1);
        assert_eq!(one.products().map(|product| product.id).collect::<Vec<_>>(), [1, 2]);
        assert!(one.products().all(|product| !product.released));
        for product in [1, 2] {
            let sizes: Vec<&str> = one.items_of(product).map(|item| &*item.size).collect();
            assert!(sizes.len() >= 6 && sizes.contains(&"6") && sizes.contains(&"10"));
            let levels: BTreeSet<_> = one.items_of(product).map(|item| item.level()).collect();
            assert_eq!(levels.len(), 4);
        }
        assert_eq!(one, seed(1));
        assert_ne!(one, seed(2));
    }
}
