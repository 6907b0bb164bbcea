// Calls of the Python modules that go to the kernels without torch's dispatcher.
#pragma once

#include <Python.h>

namespace fused_rnn {

// Functions of the Python module `_C`, ended by an empty entry.
extern PyMethodDef direct_methods[];

}  // namespace fused_rnn
