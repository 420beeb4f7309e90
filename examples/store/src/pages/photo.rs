//! The photographs of shoes: one drawing for each model, with the colours of each product.

use askama::Template;

/// The photograph of this name, such as `runner-ember.svg`, as SVG. `None` if there is no such model or colour.
#[must_use]
pub fn photograph(name: &str) -> Option<String> {
    let (model, color) = name.strip_suffix(".svg")?.split_once('-')?;
    let model = MODELS.iter().find(|known| known.name == model)?;
    let color = COLORS.iter().find(|known| known.name == color)?;
    Photograph { model, color }.render().ok()
}

/// A drawing of a shoe from the side, with the toe on the right.
#[derive(Template)]
#[template(path = "shoe.svg")]
struct Photograph {
    model: &'static Model,
    color: &'static Color,
}

/// The lines of a shoe. All are the data of SVG paths, in the picture's units.
struct Model {
    name: &'static str,
    /// The whole upper.
    upper: &'static str,
    /// The far side of the collar, and the tongue, both behind the upper.
    lining: &'static str,
    tongue: &'static str,
    /// Parts that are sewn onto the upper.
    heel: &'static str,
    toe: &'static str,
    quarter: &'static str,
    eyestay: &'static str,
    /// The mark on the side: two lanes.
    lanes: [&'static str; 2],
    /// The padded edge of the collar.
    collar: &'static str,
    /// Each lace, from eyelet to edge.
    laces: &'static [[i32; 4]],
    midsole: &'static str,
    /// The line where the midsole changes its colour.
    wedge: &'static str,
    outsole: &'static str,
    /// Grooves of the midsole.
    grooves: &'static str,
}

/// The colours of a shoe and of the room it stands in.
struct Color {
    name: &'static str,
    upper: &'static str,
    overlay: &'static str,
    accent: &'static str,
    lining: &'static str,
    lace: &'static str,
    midsole: &'static str,
    wedge: &'static str,
    outsole: &'static str,
    wall: &'static str,
    light: &'static str,
    floor: &'static str,
}

const LOW_UPPER: &str = "M186 574C160 508 150 432 172 372C180 348 172 322 196 306C214 296 232 306 244 322\
    C276 366 318 392 362 388C410 384 444 346 474 296L532 268C606 352 690 424 792 458C884 482 1026 458 1064 562\
    C960 606 860 610 760 604C560 588 360 578 186 574Z";

const MODELS: [Model; 3] = [
    Model {
        name: "runner",
        upper: LOW_UPPER,
        lining: "M196 306C220 292 300 300 360 316C410 322 446 300 470 280L486 300C444 352 410 388 362 390\
            C310 392 270 360 244 322C232 306 214 300 196 306Z",
        tongue: "M440 330C448 286 470 244 512 226C536 218 556 232 552 258C548 280 556 296 572 312L500 340Z",
        heel: "M186 574C160 508 150 432 172 372C206 380 252 424 280 484C296 520 302 552 304 580Z",
        toe: "M1070 566C1040 470 960 474 896 482C860 512 842 560 850 608C930 608 1000 592 1070 566Z",
        quarter: "M304 580C302 540 330 470 400 430C440 408 462 372 478 326C524 384 590 440 668 476\
            C640 520 600 556 548 592C470 588 380 584 304 580Z",
        eyestay: "M476 300C552 392 644 452 756 486C776 478 790 470 798 460C692 424 608 352 534 268Z",
        lanes: [
            "M352 583C420 556 520 500 596 436L632 458C560 522 470 570 420 587Z",
            "M452 589C520 560 590 516 648 466L684 482C630 530 566 574 524 593Z",
        ],
        collar: "M196 306C214 298 232 306 244 322C276 366 318 392 362 388C410 384 444 346 474 298",
        laces: &[
            [516, 352, 562, 296],
            [556, 390, 606, 336],
            [600, 424, 652, 372],
            [648, 450, 700, 402],
            [700, 470, 748, 428],
        ],
        midsole: "M176 566C150 590 152 650 196 672C380 688 620 684 830 682C940 680 1030 652 1074 594\
            C1084 576 1070 562 1050 562C960 602 860 606 760 600C560 584 360 574 176 566Z",
        wedge: "M160 612C320 596 460 652 620 640C780 630 900 660 1046 618C1010 656 930 680 830 682\
            C620 684 380 688 196 672C172 660 160 638 160 612Z",
        outsole: "M176 658C260 676 420 680 600 678C760 680 860 676 920 668C990 658 1044 632 1070 600\
            C1062 640 1000 690 900 700C700 712 400 712 214 698C190 694 178 678 176 658Z",
        grooves: "M232 606C236 626 236 640 230 656M300 604C306 624 308 642 304 664M372 610C380 628 384 648 382 668\
            M820 630C828 644 830 656 828 670M890 626C900 640 902 652 900 664M956 614C966 626 970 638 968 650",
    },
    Model {
        name: "court",
        upper: LOW_UPPER,
        lining: "M196 306C220 292 300 300 360 316C410 322 446 300 470 280L486 300C444 352 410 388 362 390\
            C310 392 270 360 244 322C232 306 214 300 196 306Z",
        tongue: "M440 330C448 286 470 244 512 226C536 218 556 232 552 258C548 280 556 296 572 312L500 340Z",
        heel: "M172 372C158 430 158 470 168 520L262 526C262 470 252 420 240 384C220 372 192 366 172 372Z",
        toe: "M1070 566C1040 470 960 474 896 482C820 496 780 540 776 606C880 612 980 600 1070 566Z",
        quarter: "M168 520C172 545 180 562 186 574L548 594C600 560 640 520 668 476C590 440 524 384 478 326\
            C440 420 360 470 262 526Z",
        eyestay: "M476 300C552 392 644 452 756 486C776 478 790 470 798 460C692 424 608 352 534 268Z",
        lanes: ["M330 582L470 462L514 480L400 586Z", "M440 588L556 490L598 506L506 592Z"],
        collar: "M196 306C214 298 232 306 244 322C276 366 318 392 362 388C410 384 444 346 474 298",
        laces: &[
            [516, 352, 562, 296],
            [556, 390, 606, 336],
            [600, 424, 652, 372],
            [648, 450, 700, 402],
            [700, 470, 748, 428],
        ],
        midsole: "M176 560C166 600 166 660 184 684C400 694 800 694 1010 684C1060 670 1084 620 1072 572\
            C1064 560 1056 558 1048 560C960 600 860 604 760 598C560 584 360 572 176 560Z",
        wedge: "M172 628C460 640 860 646 1070 624C1064 654 1044 674 1010 684C800 694 400 694 184 684\
            C174 670 172 650 172 628Z",
        outsole: "M178 672C420 690 860 690 1052 660C1040 684 1024 694 1000 698C760 708 420 708 198 700\
            C184 696 180 684 178 672Z",
        grooves: "M176 596C420 616 860 640 1070 596",
    },
    Model {
        name: "high",
        upper: "M186 574C162 500 158 420 170 340C178 280 166 230 172 186C178 160 206 152 232 160\
            C300 184 372 196 432 176L508 150C560 240 640 362 752 432C872 478 1026 454 1064 562\
            C960 606 860 610 760 604C560 588 360 578 186 574Z",
        lining: "M172 186C186 140 260 128 330 134C390 138 430 150 452 170C400 200 330 200 262 178\
            C220 164 190 164 172 186Z",
        tongue: "M416 190C418 140 440 96 486 84C520 78 540 96 536 130C534 160 544 190 560 214L470 240Z",
        heel: "M186 574C162 500 158 420 170 340C190 330 220 330 244 344C270 420 290 500 296 580Z",
        toe: "M1070 566C1040 468 950 470 872 474C800 498 764 548 764 604C870 612 980 600 1070 566Z",
        quarter: "M174 250C180 290 174 310 170 340C190 330 220 330 244 344C262 400 280 470 290 530\
            C380 500 470 430 500 330C476 280 458 230 444 184L432 176C430 220 380 256 174 250Z",
        eyestay: "M444 178C500 320 600 430 716 478C738 466 752 450 758 434C642 364 562 240 508 150Z",
        lanes: [
            "M330 583C420 550 500 480 552 410L592 446C540 510 470 562 404 587Z",
            "M440 589C510 560 570 510 614 464L656 490C610 536 560 570 510 593Z",
        ],
        collar: "M172 188C178 162 206 154 232 162C300 186 372 198 434 178",
        laces: &[
            [466, 224, 522, 178],
            [490, 278, 552, 230],
            [520, 330, 584, 282],
            [556, 378, 620, 330],
            [602, 420, 662, 374],
            [656, 452, 712, 410],
        ],
        midsole: "M176 560C166 600 166 660 184 684C400 694 800 694 1010 684C1060 670 1084 620 1072 572\
            C1064 560 1056 558 1048 560C960 600 860 604 760 598C560 584 360 572 176 560Z",
        wedge: "M172 628C460 640 860 646 1070 624C1064 654 1044 674 1010 684C800 694 400 694 184 684\
            C174 670 172 650 172 628Z",
        outsole: "M178 672C420 690 860 690 1052 660C1040 684 1024 694 1000 698C760 708 420 708 198 700\
            C184 696 180 684 178 672Z",
        grooves: "M176 596C420 616 860 640 1070 596",
    },
];

const COLORS: [Color; 6] = [
    Color {
        name: "ember",
        upper: "#e8502c",
        overlay: "#b92f17",
        accent: "#ffd9b8",
        lining: "#4a1710",
        lace: "#fff4ea",
        midsole: "#fff3e6",
        wedge: "#f6b48a",
        outsole: "#3a1a14",
        wall: "#f3c7ae",
        light: "#ffeadd",
        floor: "#dfa385",
    },
    Color {
        name: "glacier",
        upper: "#e9f2f6",
        overlay: "#9cc3d6",
        accent: "#1d6a92",
        lining: "#17455f",
        lace: "#ffffff",
        midsole: "#ffffff",
        wedge: "#d3e6ef",
        outsole: "#2a6484",
        wall: "#b9d5e2",
        light: "#e4f1f7",
        floor: "#93b9ca",
    },
    Color {
        name: "moss",
        upper: "#7c8f5c",
        overlay: "#566740",
        accent: "#e8e2bf",
        lining: "#2f3a24",
        lace: "#f1eedb",
        midsole: "#f4f0df",
        wedge: "#d9cfa6",
        outsole: "#7a5533",
        wall: "#cdd4b8",
        light: "#ecf0de",
        floor: "#aab48d",
    },
    Color {
        name: "ink",
        upper: "#2b303a",
        overlay: "#15181f",
        accent: "#e7ff52",
        lining: "#0c0e12",
        lace: "#e7ff52",
        midsole: "#f1f3f6",
        wedge: "#c9ced8",
        outsole: "#15181f",
        wall: "#c2c8d2",
        light: "#e9edf2",
        floor: "#9ca4b2",
    },
    Color {
        name: "sand",
        upper: "#dcc7a1",
        overlay: "#bb9c6b",
        accent: "#7a4a25",
        lining: "#5b3c22",
        lace: "#fbf5e8",
        midsole: "#fbf6ea",
        wedge: "#ecdcbc",
        outsole: "#9a6a3d",
        wall: "#e9dcc6",
        light: "#f9f2e6",
        floor: "#cdb890",
    },
    Color {
        name: "violet",
        upper: "#7a5bd6",
        overlay: "#5237a4",
        accent: "#ffb65c",
        lining: "#2a1a5c",
        lace: "#f4efff",
        midsole: "#f7f3ff",
        wedge: "#c9b9f4",
        outsole: "#ff9838",
        wall: "#cfc3ee",
        light: "#efe9fb",
        floor: "#a898d6",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_drawn_in_every_color_and_no_two_are_alike() {
        let mut drawn = std::collections::HashSet::new();
        for model in &MODELS {
            for color in &COLORS {
                let photo = photograph(&format!("{}-{}.svg", model.name, color.name)).unwrap();
                assert!(photo.starts_with("<svg") && photo.trim_end().ends_with("</svg>"));
                assert!(drawn.insert(photo));
            }
        }
    }

    #[test]
    fn other_names_have_no_photograph() {
        for name in ["runner-ember", "runner.svg", "boot-ember.svg", "runner-pink.svg", "", "-.svg"]
        {
            assert_eq!(photograph(name), None, "{name}");
        }
    }
}
