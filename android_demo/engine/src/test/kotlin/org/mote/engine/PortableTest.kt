package org.mote.engine

import java.io.File
import java.nio.file.Files
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** A portable export (`mote-export --portable`) runs where there is no plugin. */
class PortableTest {
    @get:Rule
    val temporary = TemporaryFolder()

    /** The demo model with what `--portable` adds: the operators as functions of its graph. */
    private fun portable(): File {
        val folder = temporary.newFolder()
        File(TestData.model, "onnx").copyRecursively(folder, overwrite = true)
        val program = "import sys, onnx_ir as ir; from mote_export.targets.onnx.functions import add_functions; " +
            "model = ir.load(sys.argv[1]); add_functions(model); ir.save(model, sys.argv[1])"
        val graph = File(folder, "model.onnx")
        TestData.python(program, graph)
        val manifest = File(folder, MANIFEST_NAME)
        val document = JSONObject(manifest.readText()).put("plugin", JSONObject.NULL)
        document.getJSONObject("files").apply {
            remove("libmote_ort.so")
            getJSONObject("model.onnx").put("bytes", graph.length())
        }
        manifest.writeText(document.toString())
        return folder
    }

    @Test
    fun itAnswersWithoutThePlugin() {
        val folder = temporary.newFolder()
        val support = File(TestData.libraries.path(NativeLibraries.SUPPORT))
        Files.createSymbolicLink(File(folder, support.name).toPath(), support.toPath())
        val libraries = NativeLibraries(folder)
        assertFalse(libraries.has(Runtime.ONNX_RUNTIME))
        MoteSession.open(portable(), libraries, Runtime.ONNX_RUNTIME, EngineOptions(verify = false)).use { session ->
            for (case in TestData.goldenJson("answers.json").asList().take(9).map { it.asMap() }) {
                val image = TestData.scene(case["image"] as String)
                val answer = session.ask(GenerationRequest(case["question"] as String, image, recordExperts = true))
                assertEquals(case["text"], answer.text)
                assertNull("nothing records", answer.experts)
            }
        }
    }
}
