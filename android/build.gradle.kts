// Gradle 9.4 or newer, JDK 17. AGP 9 compiles Kotlin itself.
plugins {
    id("com.android.library") version "9.4.0" apply false
    id("com.android.application") version "9.4.0" apply false
}
