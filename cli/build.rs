//! Puts the sample repository (`policies/examples/shop`) into the binary, so that `weft up` needs no source tree.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let sample = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../policies/examples/shop")
        .canonicalize()?;
    let mut files = Vec::new();
    walk(&sample, &mut files)?;
    files.sort();

    let mut source = String::from("&[\n");
    for file in &files {
        let name = file.strip_prefix(&sample).expect("found below it");
        source.push_str(&format!("    ({:?}, include_str!({:?})),\n", name.display(), file.display()));
    }
    source.push(']');
    fs::write(Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("sample.rs"), source)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    println!("cargo:rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            println!("cargo:rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    Ok(())
}
