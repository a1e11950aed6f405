//! Makes the stubs of the two gRPC services over the messages of `api::wire`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../api/proto/weft.proto");
    let files = protox::compile(["weft.proto"], ["../api/proto"])?;
    tonic_prost_build::configure().extern_path(".weft.v1", "::api::wire").compile_fds(files)?;
    Ok(())
}
