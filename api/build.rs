//! Compiles the messages of the wire with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/weft.proto");
    let files = protox::compile(["weft.proto"], ["proto"])?;
    // Ordered maps: an encoding is hashed, so it must be the same each time.
    prost_build::Config::new().btree_map(["."]).compile_fds(files)?;
    Ok(())
}
