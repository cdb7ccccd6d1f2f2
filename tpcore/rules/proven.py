"""Validator cases by op, written by python -m tests.tpcore.test_ops_table."""

COUNTS = """
ai.onnx:Abs=1 ai.onnx:Acos=1 ai.onnx:Acosh=1 ai.onnx:Add=3 ai.onnx:And=1 ai.onnx:ArgMax=3
ai.onnx:ArgMin=3 ai.onnx:Asin=1 ai.onnx:Asinh=1 ai.onnx:Atan=1 ai.onnx:Atanh=1
ai.onnx:Attention=9 ai.onnx:AveragePool=2 ai.onnx:BatchNormalization=2 ai.onnx:BitCast=1
ai.onnx:BitShift=1 ai.onnx:BitwiseAnd=1 ai.onnx:BitwiseNot=1 ai.onnx:BitwiseOr=1
ai.onnx:BitwiseXor=1 ai.onnx:Cast=2 ai.onnx:CastLike=1 ai.onnx:Ceil=1 ai.onnx:Celu=1
ai.onnx:CenterCropPad=1 ai.onnx:Clip=2 ai.onnx:Col2Im=1 ai.onnx:Compress=2 ai.onnx:Concat=3
ai.onnx:Conv=4 ai.onnx:ConvInteger=3 ai.onnx:ConvTranspose=3 ai.onnx:Cos=1 ai.onnx:Cosh=1
ai.onnx:CumProd=1 ai.onnx:CumSum=2 ai.onnx:DFT=4 ai.onnx:DeformConv=2 ai.onnx:DepthToSpace=2
ai.onnx:DequantizeLinear=9 ai.onnx:Det=1 ai.onnx:Div=2 ai.onnx:Dropout=3
ai.onnx:DynamicQuantizeLinear=1 ai.onnx:Einsum=7 ai.onnx:Elu=1 ai.onnx:Equal=1 ai.onnx:Erf=1
ai.onnx:Exp=1 ai.onnx:Expand=2 ai.onnx:Flatten=6 ai.onnx:Floor=1 ai.onnx:GRU=2 ai.onnx:Gather=7
ai.onnx:GatherElements=2 ai.onnx:GatherND=3 ai.onnx:Gelu=1 ai.onnx:GlobalAveragePool=1
ai.onnx:GlobalLpPool=1 ai.onnx:GlobalMaxPool=1 ai.onnx:Greater=1 ai.onnx:GreaterOrEqual=1
ai.onnx:GridSample=2 ai.onnx:GroupNormalization=2 ai.onnx:HardSigmoid=1 ai.onnx:HardSwish=1
ai.onnx:Hardmax=2 ai.onnx:Identity=1 ai.onnx:InstanceNormalization=2 ai.onnx:IsInf=1
ai.onnx:IsNaN=1 ai.onnx:LRN=1 ai.onnx:LSTM=3 ai.onnx:LayerNormalization=4 ai.onnx:LeakyRelu=1
ai.onnx:Less=1 ai.onnx:LessOrEqual=1 ai.onnx:Log=1 ai.onnx:LogSoftmax=3
ai.onnx:LpNormalization=2 ai.onnx:LpPool=1 ai.onnx:MatMul=8 ai.onnx:MatMulInteger=6
ai.onnx:Max=2 ai.onnx:MaxPool=3 ai.onnx:Mean=1 ai.onnx:MeanVarianceNormalization=2 ai.onnx:Min=1
ai.onnx:Mish=1 ai.onnx:Mod=2 ai.onnx:Mul=3 ai.onnx:Neg=1 ai.onnx:Not=1 ai.onnx:OneHot=2
ai.onnx:Or=1 ai.onnx:PRelu=1 ai.onnx:Pad=4 ai.onnx:Pow=1 ai.onnx:QLinearConv=3
ai.onnx:QLinearMatMul=3 ai.onnx:QuantizeLinear=7 ai.onnx:RMSNormalization=2 ai.onnx:RNN=3
ai.onnx:Reciprocal=1 ai.onnx:ReduceL1=1 ai.onnx:ReduceL2=1 ai.onnx:ReduceLogSum=1
ai.onnx:ReduceLogSumExp=1 ai.onnx:ReduceMax=1 ai.onnx:ReduceMean=6 ai.onnx:ReduceMin=1
ai.onnx:ReduceProd=1 ai.onnx:ReduceSum=6 ai.onnx:ReduceSumSquare=1 ai.onnx:Relu=1
ai.onnx:Reshape=14 ai.onnx:Resize=4 ai.onnx:ReverseSequence=2 ai.onnx:RoiAlign=1
ai.onnx:RotaryEmbedding=2 ai.onnx:Round=1 ai.onnx:STFT=1 ai.onnx:Scatter=1
ai.onnx:ScatterElements=2 ai.onnx:ScatterND=2 ai.onnx:Selu=1 ai.onnx:Shape=3 ai.onnx:Shrink=1
ai.onnx:Sigmoid=1 ai.onnx:Sign=1 ai.onnx:SimplifiedLayerNormalization=1 ai.onnx:Sin=1
ai.onnx:Sinh=1 ai.onnx:Slice=10 ai.onnx:Softmax=4 ai.onnx:Softplus=1 ai.onnx:Softsign=1
ai.onnx:SpaceToDepth=1 ai.onnx:Split=4 ai.onnx:Sqrt=1 ai.onnx:Squeeze=5 ai.onnx:Sub=3
ai.onnx:Sum=2 ai.onnx:Swish=1 ai.onnx:Tan=1 ai.onnx:Tanh=1 ai.onnx:TensorScatter=2
ai.onnx:ThresholdedRelu=1 ai.onnx:Tile=2 ai.onnx:TopK=2 ai.onnx:Transpose=3 ai.onnx:Trilu=2
ai.onnx:Unsqueeze=3 ai.onnx:Upsample=2 ai.onnx:Where=3 ai.onnx:Xor=1 com.microsoft:Attention=5
com.microsoft:BiasAdd=1 com.microsoft:BiasGelu=1 com.microsoft:BiasSoftmax=2
com.microsoft:BiasSplitGelu=1 com.microsoft:CausalConvWithState=3
com.microsoft:DequantizeLinear=2 com.microsoft:DynamicQuantizeMatMul=2 com.microsoft:FastGelu=2
com.microsoft:FusedGemm=2 com.microsoft:FusedMatMul=6 com.microsoft:GatedAdd=2
com.microsoft:GatedRMSNorm=2 com.microsoft:GatherBlockQuantized=8 com.microsoft:Gelu=1
com.microsoft:GemmFastGelu=2 com.microsoft:GroupNorm=2 com.microsoft:GroupQueryAttention=9
com.microsoft:LinearAttention=4 com.microsoft:MatMulIntegerToFloat=3
com.microsoft:MatMulNBits=20 com.microsoft:MoE=13 com.microsoft:MultiHeadAttention=6
com.microsoft:QAttention=4 com.microsoft:QGemm=4 com.microsoft:QLinearAdd=2
com.microsoft:QLinearAveragePool=2 com.microsoft:QLinearConcat=1
com.microsoft:QLinearGlobalAveragePool=2 com.microsoft:QLinearLeakyRelu=1
com.microsoft:QLinearMul=2 com.microsoft:QLinearSigmoid=1 com.microsoft:QLinearSoftmax=2
com.microsoft:QLinearWhere=1 com.microsoft:QMoE=9 com.microsoft:QuantizeLinear=2
com.microsoft:QuickGelu=1 com.microsoft:RotaryEmbedding=3 com.microsoft:ScaledSiLU=1
com.microsoft:SkipGroupNorm=2 com.microsoft:SkipLayerNormalization=3
com.microsoft:SkipSimplifiedLayerNormalization=2 com.microsoft:SwiGLU=2
com.microsoft:TransposeMatMul=1 com.microsoft:Trilu=1
"""
PROVEN = {op: int(n) for op, _, n in (item.partition("=") for item in COUNTS.split())}
