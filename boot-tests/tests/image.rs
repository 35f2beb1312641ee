//! What the release image must not contain.
#![forbid(unsafe_code)]

use hyp::fault::Site;
use xtask::images::Build;

fn holds(image: &[u8], text: &str) -> bool {
    image.windows(text.len()).any(|window| window == text.as_bytes())
}

/// `HostPoolAlloc` as `HOST_POOL_ALLOC`.
fn shouted(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

#[test]
fn the_release_image_names_no_fault_site() {
    let images = Build::default().run().unwrap();
    let image = std::fs::read(images.hypervisor.flat).unwrap();
    assert!(holds(&image, "rampart: "), "the search finds nothing at all");
    for site in Site::ALL {
        let name = format!("{site:?}");
        assert!(!holds(&image, &name) && !holds(&image, &shouted(&name)), "{name} is in the release image");
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
