// swift-tools-version: 6.0
// In git this is half a package: `.ci/swift` and `.ci/apple` add the layer that uniffi generates, and the library.
import PackageDescription

#if os(Linux)
// For the tests: the shared library; the shapes of Apple's framework that the optional target is written against; what the
// documentation says, as a program; one to be killed; what of the sample is not SwiftUI; and how much memory is held.
let library: Target = .systemLibrary(name: "EpiphyteFFI")
let onlyHere: [Target] = [
    .target(name: "FoundationModels", path: "Tests/FoundationModels"),
    .executableTarget(name: "Killed", dependencies: ["Epiphyte"], path: "Tests/Killed"),
    .executableTarget(name: "Docs", dependencies: ["Epiphyte"], path: "Tests/Docs", exclude: ["Apple.swift"]),
    .systemLibrary(name: "Malloc", path: "Tests/Malloc"),
    .target(name: "Sample", dependencies: ["Epiphyte"], path: "Sample", exclude: ["SampleApp.swift", "ContentView.swift"]),
]
let onlyHereNames: [Target.Dependency] = ["FoundationModels", "Sample", "Malloc"]
#else
let library: Target = .binaryTarget(name: "EpiphyteFFI", path: "EpiphyteFFI.xcframework")
let onlyHere: [Target] = []
let onlyHereNames: [Target.Dependency] = []
#endif

let package = Package(
    name: "Epiphyte",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [
        .library(name: "Epiphyte", targets: ["Epiphyte"]),
        .library(name: "EpiphyteFoundationModels", targets: ["EpiphyteFoundationModels"]),
    ],
    targets: onlyHere + [
        library,
        .target(name: "EpiphyteCore", dependencies: ["EpiphyteFFI"], swiftSettings: [.swiftLanguageMode(.v5)]),
        .target(
            name: "Epiphyte", dependencies: ["EpiphyteCore"],
            // For the privacy report of the app that it becomes a part of.
            resources: [.copy("PrivacyInfo.xcprivacy")],
            linkerSettings: [
                .linkedFramework("CoreFoundation", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("CoreGraphics", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("Foundation", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("Metal", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("QuartzCore", .when(platforms: [.iOS, .macOS])),
            ]),
        .target(name: "EpiphyteFoundationModels", dependencies: ["Epiphyte"] + onlyHereNames.prefix(1)),
        .testTarget(name: "EpiphyteTests", dependencies: ["Epiphyte", "EpiphyteFoundationModels"] + onlyHereNames),
    ]
)
