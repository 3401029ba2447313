//! A load generator as a program: its report goes to stdout, what is wrong to stderr.

use std::process::ExitCode;
use std::sync::Arc;

/// Run a load as its command line says; 2 for one that is wrong, 1 for a load that failed.
pub fn main<A>(
    name: &str,
    usage: &str,
    args: Result<A, String>,
    run: impl FnOnce(&Arc<A>) -> Result<String, String>,
) -> ExitCode {
    let args = match args {
        Ok(args) => Arc::new(args),
        Err(message) => {
            eprintln!("{name}: {message}\n\n{usage}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{name}: {message}");
            ExitCode::FAILURE
        }
    }
}
