plugins {
    id("com.android.application")
}

android {
    namespace = "dev.epiphyte.sample"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    // A model stays as it is in the APK, so that it can be read where it lies.
    androidResources {
        noCompress += "gguf"
    }

    // An APK each for phones and for the emulator.
    splits {
        abi {
            isEnable = true
            reset()
            include("arm64-v8a", "x86_64")
        }
    }
}

dependencies {
    implementation(project(":epiphyte"))
}
