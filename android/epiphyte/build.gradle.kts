plugins {
    id("com.android.library")
}

// What `android/build-native` leaves: the library of each ABI, and the Kotlin that calls it.
val native = rootProject.file("../target/android").path

android {
    namespace = "dev.epiphyte"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    sourceSets.getByName("main") {
        kotlin.directories += "$native/kotlin"
        jniLibs.directories += "$native/jni"
    }
}

dependencies {
    api("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
    implementation("net.java.dev.jna:jna:5.17.0@aar")
}
