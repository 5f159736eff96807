package org.mote.engine

import java.io.File
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** An export with `--kv-cache int8` keeps keys and values in a quarter of the memory. */
class Int8CacheTest {
    @get:Rule
    val temporary = TemporaryFolder()

    /** The demo model with keys and values in int8, of one scale for all; of the graph's values those called [names]. */
    private fun int8(names: String = "."): File {
        val folder = temporary.newFolder()
        File(TestData.model, "onnx").copyRecursively(folder, overwrite = true)
        val graph = File(folder, "model.onnx")
        TestData.python(PROGRAM.replace("NAMES", names), graph)
        val manifest = File(folder, MANIFEST_NAME)
        val document = JSONObject(manifest.readText())
        document.getJSONObject("files").getJSONObject("model.onnx").put("bytes", graph.length())
        manifest.writeText(document.toString())
        return folder
    }

    private fun open(folder: File) =
        MoteSession.open(folder, TestData.libraries, Runtime.ONNX_RUNTIME, EngineOptions(verify = false))

    @Test
    fun itAnswers() {
        val cases = TestData.goldenJson("answers.json").asList().take(9).map { it.asMap() }
        open(int8()).use { session ->
            val right = cases.count { case ->
                val image = TestData.scene(case["image"] as String)
                session.ask(GenerationRequest(case["question"] as String, image)).text == case["text"]
            }
            assertTrue("$right of ${cases.size} answers are those of a cache in float32", right >= cases.size - 1)
        }
    }

    @Test
    fun aGraphThatMixesTypesIsRefused() {
        val folder = int8("past_key_values.0.key")
        val error = assertThrows(MoteException::class.java) { open(folder) }
        assertTrue(error.message, "onnxruntime cannot load" in error.message!! || "INT8" in error.message!!)
        assertEquals(1, error.message!!.lines().size)
    }

    private companion object {
        val PROGRAM = """
            import sys, numpy, onnx
            from onnx import helper, numpy_helper
            model = onnx.load(sys.argv[1], load_external_data=False)
            graph = model.graph
            graph.initializer.append(numpy_helper.from_array(numpy.full(1, 0.125, numpy.float32), "scale"))
            for node in graph.node:
                if node.op_type == "GroupQueryAttention":
                    node.input.extend(["", "", "", "scale", "scale"])
                    kinds = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
                    node.attribute.extend(helper.make_attribute(*item) for item in kinds.items())
            for value in (*graph.input, *graph.output):
                if "." in value.name and "NAMES" in value.name:
                    value.type.tensor_type.elem_type = onnx.TensorProto.INT8
            onnx.save(model, sys.argv[1])
        """.trimIndent()
    }
}
