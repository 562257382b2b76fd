//! Makes the kernel and the images that the end-to-end tests boot, where they are missing.

use std::process::ExitCode;

fn main() -> ExitCode {
    match e2e::cache::make() {
        Ok(path) => {
            println!("kernel and images for tests are in {}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot make the kernel and images for tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}
