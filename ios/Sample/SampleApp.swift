// One screen: pick a feature, ask, watch the answer stream, teach three examples. Put these files into an iOS app project,
// add the package Epiphyte, a model `model.gguf`, and adapter folders under `Adapters` as a folder reference.
import Epiphyte
import SwiftUI

@main
struct SampleApp: App {
    @State private var assistant = Assistant(
        model: Bundle.main.url(forResource: "model", withExtension: "gguf")!,
        bundled: Dictionary(
            uniqueKeysWithValues: (Bundle.main.urls(forResourcesWithExtension: nil, subdirectory: "Adapters") ?? [])
                .map { ($0.lastPathComponent, $0) }),
        folder: URL.applicationSupportDirectory.appending(path: "adapters"))

    var body: some Scene {
        WindowGroup {
            ContentView(assistant: assistant)
                .task { await assistant.open() }
        }
    }
}
