//! What the release image must not contain.
#![forbid(unsafe_code)]

use abi::fault::Site;
use abi::inspect::{Figure, InspectFn};
use xtask::images::Build;

fn holds(image: &[u8], text: &str) -> bool {
    image.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn the_release_image_names_no_fault_site_and_nothing_of_the_audit() {
    let images = Build::default().run().unwrap();
    let image = std::fs::read(images.hypervisor.flat).unwrap();
    assert!(holds(&image, "rampart: "), "the search finds nothing at all");
    for site in Site::ALL {
        let variant = format!("{site:?}");
        assert!(!holds(&image, &variant) && !holds(&image, site.name()), "{variant} is in the release image");
    }
    let calls = InspectFn::ALL.iter().map(|call| call.name());
    // The short names of the others are parts of ordinary words.
    let figures = Figure::ALL.iter().map(|figure| figure.name()).filter(|name| name.contains('_'));
    for name in calls.chain(figures).chain(["audit: "]) {
        assert!(!holds(&image, name), "{name} is in the release image");
    }
}

#[test]
fn the_release_image_names_no_folder_of_this_machine() {
    let images = Build::default().run().unwrap();
    let image = std::fs::read(images.hypervisor.flat).unwrap();
    let folders = [Some(xtask::workspace()), std::env::home_dir()];
    for folder in folders.into_iter().flatten() {
        let folder = folder.display().to_string();
        assert!(folder.len() < 2 || !holds(&image, &folder), "{folder} is in the release image");
    }
}
