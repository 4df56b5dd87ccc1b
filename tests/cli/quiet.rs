//! What is printed when nothing is wrong: nothing.

use super::{epiphyte, stderr};

/// Without a desktop session drivers look for one and say that there is none.
#[test]
fn no_driver_complains_of_a_missing_desktop() {
    let output = epiphyte(&["doctor", "--json"])
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("DISPLAY")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}
