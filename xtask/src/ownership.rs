//! `--ownership-map`: a scenario writes dumps of stage-2 tables by semihosting, and this makes the
//! picture of them.

use anyhow::{Context, Result, ensure};
use ptdump::{Dump, Map, Picture, html, svg};
use std::fs;
use std::path::{Path, PathBuf};

/// What the scenario is told to begin its files' names with.
const PREFIX: &str = "map";

/// The folder that dumps go to, and the file that the picture goes to.
#[derive(Debug)]
pub struct Ownership {
    folder: PathBuf,
    picture: PathBuf,
}

impl Ownership {
    /// Makes room for the dumps of a run, whose picture goes to `picture`: a page for a browser, or a
    /// still picture if its name ends with `.svg`.
    ///
    /// # Errors
    /// The folder cannot be made, or emptied.
    pub fn new(picture: &Path) -> Result<Self> {
        let folder = crate::workspace().join("target/ownership-map");
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder, picture: picture.to_path_buf() })
    }

    /// Where QEMU must run, as file names are relative to that.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Words for the host's command line.
    #[must_use]
    pub fn args(&self) -> String {
        format!("dump={PREFIX}")
    }

    /// Makes the picture from what the scenario wrote; gives the dumps, the host's first.
    ///
    /// # Errors
    /// There is no dump of the host's table, or a dump is none; the picture cannot be written.
    pub fn draw(&self) -> Result<Vec<PathBuf>> {
        let host = self.folder.join(format!("{PREFIX}.host.s2"));
        ensure!(host.exists(), "the scenario wrote no dump of the host's table");
        let mut guests = Vec::new();
        for entry in fs::read_dir(&self.folder).context("cannot list the dumps")? {
            let path = entry.context("cannot list the dumps")?.path();
            if path.extension().is_some_and(|extension| extension == "s2") && path != host {
                guests.push(path);
            }
        }
        guests.sort();
        let open = |path: &PathBuf| Dump::open(path).with_context(|| path.display().to_string());
        let dump = open(&host)?;
        let tables = guests.iter().map(open).collect::<Result<Vec<_>>>()?;
        let map = Map::new(&dump, &tables)?;
        let picture = Picture::new(&dump, &map);
        let still = self.picture.extension().is_some_and(|extension| extension == "svg");
        let text = if still { svg::draw(&picture) } else { html::draw(&picture) };
        fs::write(&self.picture, text).with_context(|| self.picture.display().to_string())?;
        ensure!(map.problems.count() == 0, "the tables contradict each other: {:?}", map.problems.first());
        Ok(std::iter::once(host).chain(guests).collect())
    }
}
