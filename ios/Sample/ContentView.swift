import SwiftUI

struct ContentView: View {
    @Bindable var assistant: Assistant
    @State private var prompt = "What is an epiphyte?"
    @State private var name = "mine"
    @State private var lessons = [
        Lesson(question: "What is our cat called?", answer: "Pixel"),
        Lesson(question: "When does the choir sing?", answer: "On Thursdays at eight"),
        Lesson(question: "Who waters the ferns?", answer: "Ada"),
    ]

    var body: some View {
        Form {
            Section("Ask") {
                Picker("Feature", selection: $assistant.feature) {
                    Text("None").tag(String?.none)
                    ForEach(assistant.features, id: \.self) { Text($0).tag(String?.some($0)) }
                }
                TextField("Prompt", text: $prompt)
                Button("Ask") { Task { await assistant.ask(prompt) } }
                Text(assistant.answer)
                if let speed = assistant.tokensPerSecond { Text("\(speed, format: .number.precision(.fractionLength(1))) tokens/s") }
            }
            Section("Teach") {
                TextField("Name", text: $name)
                ForEach($lessons) { $lesson in
                    TextField("Question", text: $lesson.question)
                    TextField("Answer", text: $lesson.answer)
                }
                Button("Teach") { Task { await assistant.teach(name, lessons.map { ($0.question, $0.answer) }) } }
                if let loss = assistant.losses.last {
                    Text("Step \(assistant.losses.count), loss \(loss, format: .number.precision(.fractionLength(3)))")
                }
            }
            Button("Stop", role: .cancel) { assistant.stop() }
            if let problem = assistant.problem { Text(problem).foregroundStyle(.red) }
        }
        .disabled(!assistant.isReady && assistant.problem == nil)
    }
}

struct Lesson: Identifiable {
    let id = UUID()
    var question: String
    var answer: String
}
