//! x
fn main() -> anyhow::Result<()> {
    let report = homing_tests::bench::fastpath::run(&mut |s| eprint!("\r{s}    "))?;
    eprintln!();
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
